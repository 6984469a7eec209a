// mcp-go as a peer: `mark3labs (http|stateless|stdio) PORT`. It replies in JSON by itself; nothing is logged.
// With BENCH_REDIS, it has the tools of the shop.
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"

	"bench/shop"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
)

type numbers struct {
	A int `json:"a"`
	B int `json:"b"`
}

type sum struct {
	Result int `json:"result"`
}

// another makes a tool of the shape of add.
func another(name, description string, number int) server.ServerTool {
	add := func(_ context.Context, _ mcp.CallToolRequest, given numbers) (sum, error) {
		return sum{given.A + given.B + number}, nil
	}
	tool := mcp.NewTool(
		name, mcp.WithDescription(description), mcp.WithInputSchema[numbers](), mcp.WithOutputSchema[sum](),
	)
	return server.ServerTool{Tool: tool, Handler: mcp.NewStructuredToolHandler(add)}
}

func offer[In any](name, about string, call func(context.Context, In) (string, error)) server.ServerTool {
	handler := func(ctx context.Context, _ mcp.CallToolRequest, given In) (*mcp.CallToolResult, error) {
		text, err := call(ctx, given)
		return mcp.NewToolResultText(text), err
	}
	tool := mcp.NewTool(name, mcp.WithDescription(about), mcp.WithInputSchema[In]())
	return server.ServerTool{Tool: tool, Handler: mcp.NewTypedToolHandler(handler)}
}

func build() *server.MCPServer {
	bench := server.NewMCPServer("bench", "1")
	if os.Getenv("BENCH_REDIS") != "" {
		tools := shop.New()
		bench.AddTools(
			offer("search_products", "Search products by category and price.", tools.SearchProducts),
			offer("get_user_cart", "Show the cart of a user.", tools.GetUserCart),
			offer("checkout", "Order products.", tools.Order),
		)
		return bench
	}
	bench.AddTools(another("add", "Add two numbers.", 0))
	count, _ := strconv.Atoi(os.Getenv("BENCH_TOOLS"))
	for number := 1; number < count; number++ {
		bench.AddTools(another(fmt.Sprintf("add_%d", number), fmt.Sprintf("Add two numbers and %d.", number), number))
	}
	return bench
}

func main() {
	bench := build()
	if os.Args[1] == "stdio" {
		log.Fatal(server.ServeStdio(bench))
	}
	handler := server.NewStreamableHTTPServer(bench, server.WithStateLess(os.Args[1] == "stateless"))
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[2], handler))
}
