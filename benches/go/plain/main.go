// A program without an SDK, for benches/record: `plain URL [chunked]`. With `chunked`, it doesn't know the length of its
// body, as if it passed one on.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"runtime"
	"strings"
)

const message = `{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"add","arguments":{"a":1234567,"b":1},` +
	`"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",` +
	`"io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1"},` +
	`"io.modelcontextprotocol/clientCapabilities":{}}}}`

func main() {
	source := "source: net/http " + strings.TrimPrefix(runtime.Version(), "go")
	if len(os.Args) > 2 {
		source += ", with a body of unknown length"
	}
	fmt.Println(source)
	for id := range 2 {
		var body io.Reader = strings.NewReader(fmt.Sprintf(message, id))
		if len(os.Args) > 2 {
			body = io.MultiReader(body)
		}
		request, err := http.NewRequest("POST", os.Args[1], body)
		if err != nil {
			log.Fatal(err)
		}
		request.Header.Set("Accept", "application/json, text/event-stream")
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("MCP-Protocol-Version", "2026-07-28")
		request.Header.Set("Mcp-Method", "tools/call")
		request.Header.Set("Mcp-Name", "add")
		reply, err := http.DefaultClient.Do(request)
		if err != nil {
			log.Fatal(err)
		}
		text, _ := io.ReadAll(reply.Body)
		reply.Body.Close()
		fmt.Println(string(text))
	}
}
