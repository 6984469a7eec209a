// The official Go SDK as a peer: `official (http|stateless|stdio) PORT`, with JSON replies and no log. With BENCH_REDIS,
// it has the tools of the shop.
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"

	"bench/shop"

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
	server := build()
	if os.Args[1] == "stdio" {
		log.Fatal(server.Run(context.Background(), &mcp.StdioTransport{}))
	}
	options := &mcp.StreamableHTTPOptions{Stateless: os.Args[1] == "stateless", JSONResponse: true}
	handler := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, options)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[2], handler))
}

func offer[In any](server *mcp.Server, name, about string, call func(context.Context, In) (string, error)) {
	mcp.AddTool(server, &mcp.Tool{Name: name, Description: about},
		func(ctx context.Context, _ *mcp.CallToolRequest, given In) (*mcp.CallToolResult, any, error) {
			text, err := call(ctx, given)
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: text}}}, nil, err
		})
}

func build() *mcp.Server {
	server := mcp.NewServer(&mcp.Implementation{Name: "bench", Version: "1"}, nil)
	if os.Getenv("BENCH_REDIS") != "" {
		tools := shop.New()
		offer(server, "search_products", "Search products by category and price.", tools.SearchProducts)
		offer(server, "get_user_cart", "Show the cart of a user.", tools.GetUserCart)
		offer(server, "checkout", "Order products.", tools.Order)
		return server
	}
	mcp.AddTool(server, &mcp.Tool{Name: "add", Description: "Add two numbers."}, another(0))
	count, _ := strconv.Atoi(os.Getenv("BENCH_TOOLS"))
	for number := 1; number < count; number++ {
		tool := &mcp.Tool{Name: fmt.Sprintf("add_%d", number), Description: fmt.Sprintf("Add two numbers and %d.", number)}
		mcp.AddTool(server, tool, another(number))
	}
	return server
}
