// The official client of Go, for benches/record: `client URL`.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"runtime/debug"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

func main() {
	ctx := context.Background()
	client := mcp.NewClient(&mcp.Implementation{Name: "bench", Version: "1"}, nil)
	session, err := client.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: os.Args[1]}, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer session.Close()
	info, _ := debug.ReadBuildInfo()
	for _, module := range info.Deps {
		if module.Path == "github.com/modelcontextprotocol/go-sdk" {
			fmt.Println("source: go-sdk", module.Version, "on", info.GoVersion)
		}
	}
	if _, err := session.ListTools(ctx, nil); err != nil {
		log.Fatal(err)
	}
	for range 2 {
		arguments := map[string]any{"a": 1234567, "b": 1}
		result, err := session.CallTool(ctx, &mcp.CallToolParams{Name: "add", Arguments: arguments})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(result.StructuredContent)
	}
}
