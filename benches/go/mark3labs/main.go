// mcp-go as a peer: `mark3labs (http|stateless|stdio) PORT`. It replies in JSON by itself; nothing is logged.
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"

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

func main() {
	bench := server.NewMCPServer("bench", "1")
	bench.AddTools(another("add", "Add two numbers.", 0))
	count, _ := strconv.Atoi(os.Getenv("BENCH_TOOLS"))
	for number := 1; number < count; number++ {
		bench.AddTools(another(fmt.Sprintf("add_%d", number), fmt.Sprintf("Add two numbers and %d.", number), number))
	}
	if os.Args[1] == "stdio" {
		log.Fatal(server.ServeStdio(bench))
	}
	handler := server.NewStreamableHTTPServer(bench, server.WithStateLess(os.Args[1] == "stateless"))
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[2], handler))
}
