import io.modelcontextprotocol.client.McpClient;
import io.modelcontextprotocol.client.transport.HttpClientStreamableHttpTransport;
import io.modelcontextprotocol.json.McpJsonDefaults;
import io.modelcontextprotocol.server.McpServer;
import io.modelcontextprotocol.server.McpServerFeatures.SyncCompletionSpecification;
import io.modelcontextprotocol.server.McpServerFeatures.SyncPromptSpecification;
import io.modelcontextprotocol.server.McpServerFeatures.SyncResourceSpecification;
import io.modelcontextprotocol.server.McpServerFeatures.SyncToolSpecification;
import io.modelcontextprotocol.server.transport.StdioServerTransportProvider;
import io.modelcontextprotocol.spec.McpSchema.*;
import java.util.*;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.function.BiFunction;

/**
 * A server and a client with the official Java SDK. Without arguments, it serves over stdio. With a URL, it uses
 * the tools, the resource, and the prompt of such a server, and prints what it receives as JSON.
 */
class JavaPeer {
  static final Map<String, Object> FORM = Map.of("type", "object", "properties", Map.of("name", Map.of("type", "string")));
  static final Map<String, Object> NONE = Map.of("type", "object");

  static CallToolResult text(Object text) {
    return CallToolResult.builder().addTextContent(String.valueOf(text)).build();
  }

  static void serve() throws InterruptedException {
    var transport = new StdioServerTransportProvider(McpJsonDefaults.getMapper());
    var added = new SyncToolSpecification(Tool.builder("added", NONE).build(), (exchange, request) -> text("added"));
    var server = McpServer.sync(transport)
        .serverInfo("java", "1")
        .capabilities(ServerCapabilities.builder().tools(true).resources(false, true).prompts(true).logging().completions().build())
        .toolCall(Tool.builder("ask", NONE).build(), (exchange, request) ->
            text(exchange.createElicitation(ElicitFormRequest.builder("Name?", FORM).build()).content().get("name")))
        .toolCall(Tool.builder("sample", NONE).build(), (exchange, request) -> {
          var message = new SamplingMessage(Role.USER, new TextContent("Hello"));
          var reply = exchange.createMessage(CreateMessageRequest.builder(List.of(message), 9).build());
          return text(((TextContent) reply.content()).text());
        })
        .toolCall(Tool.builder("roots", NONE).build(), (exchange, request) ->
            text(exchange.listRoots().roots().get(0).uri()))
        .toolCall(Tool.builder("work", NONE).build(), (exchange, request) -> {
          exchange.loggingNotification(LoggingMessageNotification.builder(LoggingLevel.INFO, "working").build());
          exchange.progressNotification(new ProgressNotification(request.progressToken(), 1.0, 2.0, "half"));
          return CallToolResult.builder().structuredContent(Map.of("n", 7)).addTextContent("7").build();
        })
        .resources(new SyncResourceSpecification(Resource.builder("mem://one", "one").build(), (exchange, request) ->
            new ReadResourceResult(List.of(new TextResourceContents(request.uri(), "text/plain", "first")))))
        .prompts(new SyncPromptSpecification(new Prompt("greet", "", List.of(new PromptArgument("who", "", true))), (exchange, request) ->
            new GetPromptResult("", List.of(new PromptMessage(Role.USER, new TextContent("Hello " + request.arguments().get("who")))))))
        .completions(new SyncCompletionSpecification(new PromptReference("greet"), (exchange, request) ->
            new CompleteResult(new CompleteResult.CompleteCompletion(List.of("Ada"), 1, false))))
        .build();
    server.addTool(new SyncToolSpecification(Tool.builder("add", NONE).build(), (exchange, request) -> {
      server.addTool(added);
      return text("ok");
    }));
    Thread.currentThread().join();
  }

  static void call(String url) throws Exception {
    var transport = HttpClientStreamableHttpTransport.builder(url).build();
    var found = Collections.synchronizedMap(new TreeMap<String, Object>());
    var received = new CountDownLatch(3);
    var client = McpClient.sync(transport)
        .capabilities(ClientCapabilities.builder().roots(true).sampling().elicitation().build())
        .roots(new Root("file:///work", "work"))
        .elicitation(request -> new ElicitResult(ElicitResult.Action.ACCEPT, Map.of("name", "Ada")))
        .sampling(request -> CreateMessageResult.builder(Role.ASSISTANT, "Good day", "model").build())
        .loggingConsumer(message -> { found.put("log", message.data()); received.countDown(); })
        .progressConsumer(message -> { found.put("progress", message.message()); received.countDown(); })
        .toolsChangeConsumer(tools -> { found.put("changed", true); received.countDown(); })
        .build();
    BiFunction<String, Object, CallToolResult> use = (tool, token) ->
        client.callTool(CallToolRequest.builder(tool).arguments(Map.of()).progressToken(token).build());
    found.put("revision", client.initialize().protocolVersion());
    client.setLoggingLevel(LoggingLevel.INFO);
    var names = client.listTools().tools().stream().map(Tool::name).toList();
    for (var name : names)
      found.put(name, ((TextContent) use.apply(name, "token of " + name).content().get(0)).text());
    found.put("resource", ((TextResourceContents) client.readResource(client.listResources().resources().get(0)).contents().get(0)).text());
    var prompt = client.listPrompts().prompts().get(0).name();
    found.put("prompt", ((TextContent) client.getPrompt(new GetPromptRequest(prompt, Map.of("who", "Bob"))).messages().get(0).content()).text());
    var argument = new CompleteRequest.CompleteArgument("who", "A");
    found.put("completion", client.completeCompletion(new CompleteRequest(new PromptReference(prompt), argument)).completion().values());
    received.await(60, TimeUnit.SECONDS);
    System.out.println(McpJsonDefaults.getMapper().writeValueAsString(found));
    client.closeGracefully();
  }

  public static void main(String[] given) throws Exception {
    if (given.length == 0) serve();
    else call(given[0]);
    System.exit(0);
  }
}
