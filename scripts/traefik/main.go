// Traefikcheck reads files of dynamic configuration with the types of Traefik itself, to which an unknown key is an error.
package main

import (
	"fmt"
	"os"

	"github.com/traefik/paerser/file"
	"github.com/traefik/traefik/v3/pkg/config/dynamic"
)

func main() {
	for _, name := range os.Args[1:] {
		if err := file.Decode(name, &dynamic.Configuration{}); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
	}
}
