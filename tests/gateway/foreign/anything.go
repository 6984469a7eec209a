// A server of the official Go SDK. One tool has an argument of any type: its schema is `true`. The other asks the user.
package main

import (
	"context"
	"fmt"
	"log"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

type arguments struct {
	Anything any `json:"anything"`
}

func main() {
	server := mcp.NewServer(&mcp.Implementation{Name: "anything", Title: "Any Thing", Version: "7.1"}, nil)
	mcp.AddTool(server, &mcp.Tool{Name: "show", Description: "Show a value of any type."},
		func(_ context.Context, _ *mcp.CallToolRequest, given arguments) (*mcp.CallToolResult, any, error) {
			shown := &mcp.TextContent{Text: fmt.Sprintf("%v", given.Anything)}
			return &mcp.CallToolResult{Content: []mcp.Content{shown}}, nil, nil
		})
	mcp.AddTool(server, &mcp.Tool{Name: "ask", Description: "Ask for a name."},
		func(ctx context.Context, request *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, any, error) {
			answer, err := request.Session.Elicit(ctx, &mcp.ElicitParams{
				Message: "Your name?",
				RequestedSchema: map[string]any{
					"type":       "object",
					"properties": map[string]any{"name": map[string]any{"type": "string"}},
				},
			})
			if err != nil {
				return nil, nil, err
			}
			name := &mcp.TextContent{Text: fmt.Sprint(answer.Content["name"])}
			return &mcp.CallToolResult{Content: []mcp.Content{name}}, nil, nil
		})
	log.Fatal(server.Run(context.Background(), &mcp.StdioTransport{}))
}
