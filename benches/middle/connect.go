package mcp

// Puts the millstream command between this package's clients and servers. golang.py adds this file to the package and
// calls its functions where a client or a server connects. With ALONE=1, they connect to each other instead.

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
)

var (
	isAlone    = os.Getenv("ALONE") != ""
	connecting sync.Mutex
	partners   = map[*InMemoryTransport]*InMemoryTransport{}
	servers    = map[*InMemoryTransport]string{} // a client's transport -> socket of its server
	fronts     = map[string]*front{}             // host of a server -> the command in front of it
	mark       = func() { fmt.Println("\nCONNECTED") }
)

// A front is a millstream command that serves HTTP in front of a server.
type front struct {
	starter net.Conn // the command ends when this is closed
	host    string
	clients int
}

// order starts a millstream command (see starter.py) and returns the connection to its starter.
func order(stdio bool, arguments ...string) net.Conn {
	conn, err := net.Dial("unix", os.Getenv("STARTER"))
	if err == nil {
		err = json.NewEncoder(conn).Encode(map[string]any{"arguments": arguments, "stdio": stdio})
	}
	if err != nil {
		panic(err)
	}
	return conn
}

// throughMillstream returns the URL of a command in front of a server.
func throughMillstream(endpoint, path string) string {
	parsed, err := url.Parse(endpoint)
	if err != nil || parsed.Hostname() != "127.0.0.1" {
		return endpoint
	}
	mark()
	if isAlone {
		return endpoint
	}
	connecting.Lock()
	defer connecting.Unlock()
	found := fronts[parsed.Host]
	if found == nil {
		conn := order(false, "run", "--", endpoint)
		var reply struct{ Port int }
		line, err := bufio.NewReader(conn).ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &reply)
		}
		if err != nil {
			panic(err)
		}
		found = &front{starter: conn, host: fmt.Sprintf("127.0.0.1:%d", reply.Port)}
		fronts[parsed.Host] = found
	}
	found.clients++
	return "http://" + found.host + path
}

// leaveMillstream ends the command at a URL when its last client has closed its connection. Tests wait for the end of
// all requests to their servers, and the command keeps some open.
func leaveMillstream(address string) {
	parsed, err := url.Parse(address)
	if err != nil {
		return
	}
	connecting.Lock()
	defer connecting.Unlock()
	for host, each := range fronts {
		if each.host != parsed.Host {
			continue
		}
		if each.clients--; each.clients == 0 {
			each.starter.Close()
			delete(fronts, host)
		}
	}
}

// pair remembers that two transports are connected to each other.
func pair(one, other *InMemoryTransport) (*InMemoryTransport, *InMemoryTransport) {
	connecting.Lock()
	defer connecting.Unlock()
	partners[one], partners[other] = other, one
	return one, other
}

// inMemory returns the transport in memory that another one may wrap.
func inMemory(transport Transport) *InMemoryTransport {
	for {
		switch each := transport.(type) {
		case *InMemoryTransport:
			return each
		case *LoggingTransport:
			transport = each.Transport
		default:
			return nil
		}
	}
}

// serveAtSocket lets a server in memory wait for one connection at a socket.
func serveAtSocket(transport Transport) {
	connecting.Lock()
	defer connecting.Unlock()
	server := inMemory(transport)
	client := partners[server]
	if client == nil {
		return
	}
	folder, err := os.MkdirTemp("", "mcp")
	if err != nil {
		panic(err)
	}
	path := filepath.Join(folder, "server")
	listener, err := net.Listen("unix", path)
	if err != nil {
		panic(err)
	}
	accepted := &acceptedConn{listener: listener, ready: make(chan struct{})}
	go accepted.accept(folder)
	server.rwc, servers[client] = accepted, path
	delete(partners, server)
	delete(partners, client)
}

// connectToCommand connects a client to a command whose upstream is the server at a socket.
func connectToCommand(transport Transport) {
	connecting.Lock()
	defer connecting.Unlock()
	client := inMemory(transport)
	path := servers[client]
	if path == "" {
		return
	}
	mark()
	if isAlone {
		return
	}
	var pipe []string
	if err := json.Unmarshal([]byte(os.Getenv("PIPE")), &pipe); err != nil {
		panic(err)
	}
	client.rwc = order(true, append(append([]string{"run", "--transport", "stdio", "--"}, pipe...), path)...)
	delete(servers, client)
}

// connectToSocket connects a test without a client, or without a command, to the server at a socket.
func (t *InMemoryTransport) connectToSocket() {
	connecting.Lock()
	defer connecting.Unlock()
	if path := servers[t]; path != "" {
		conn, err := (&net.Dialer{}).DialContext(context.Background(), "unix", path)
		if err != nil {
			panic(err)
		}
		t.rwc = conn
		delete(servers, t)
	}
}

// An acceptedConn is a connection whose other end connects later.
type acceptedConn struct {
	listener net.Listener
	ready    chan struct{}
	conn     net.Conn // nil after ready is closed if no one connected
	once     sync.Once
}

func (c *acceptedConn) accept(folder string) {
	c.conn, _ = c.listener.Accept()
	c.listener.Close()
	os.RemoveAll(folder)
	close(c.ready)
}

func (c *acceptedConn) Read(data []byte) (int, error) {
	if <-c.ready; c.conn == nil {
		return 0, io.EOF
	}
	return c.conn.Read(data)
}

func (c *acceptedConn) Write(data []byte) (int, error) {
	if <-c.ready; c.conn == nil {
		return 0, io.ErrClosedPipe
	}
	return c.conn.Write(data)
}

func (c *acceptedConn) Close() error {
	c.once.Do(func() {
		c.listener.Close()
		if <-c.ready; c.conn != nil {
			c.conn.Close()
		}
	})
	return nil
}
