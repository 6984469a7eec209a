// A server of the official Go SDK, whose first tool has an argument of any type: its schema is `true`.
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
	log.Fatal(server.Run(context.Background(), &mcp.StdioTransport{}))
}
