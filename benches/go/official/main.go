// The official Go SDK as a peer: `official (http|stateless|stdio) PORT`, with JSON replies and no log.
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

type numbers struct {
	A int `json:"a"`
	B int `json:"b"`
}

type sum struct {
	Result int `json:"result"`
}

// another makes a handler of the shape of add.
func another(number int) mcp.ToolHandlerFor[numbers, sum] {
	return func(_ context.Context, _ *mcp.CallToolRequest, given numbers) (*mcp.CallToolResult, sum, error) {
		return nil, sum{given.A + given.B + number}, nil
	}
}

func main() {
	server := mcp.NewServer(&mcp.Implementation{Name: "bench", Version: "1"}, nil)
	mcp.AddTool(server, &mcp.Tool{Name: "add", Description: "Add two numbers."}, another(0))
	count, _ := strconv.Atoi(os.Getenv("BENCH_TOOLS"))
	for number := 1; number < count; number++ {
		tool := &mcp.Tool{Name: fmt.Sprintf("add_%d", number), Description: fmt.Sprintf("Add two numbers and %d.", number)}
		mcp.AddTool(server, tool, another(number))
	}
	if os.Args[1] == "stdio" {
		log.Fatal(server.Run(context.Background(), &mcp.StdioTransport{}))
	}
	options := &mcp.StreamableHTTPOptions{Stateless: os.Args[1] == "stateless", JSONResponse: true}
	handler := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, options)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[2], handler))
}
