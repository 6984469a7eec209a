//! The official Rust SDK as a peer: `bench (http|stateless|stdio) PORT`.
//!
//! It gets what makes it fastest: one thread, mimalloc, hyper without a router in front, and tools that are registered
//! once instead of for each request. With BENCH_REDIS, it has the tools of the shop, with BENCH_PAGE those of `traffic`,
//! and BENCH_WORKERS sets its threads. It replies in JSON where it can; in sessions it always streams, here without the
//! first event and the keep-alives that a stream has otherwise.

use std::{convert::Infallible, env, error::Error, net::Ipv4Addr, sync::Arc};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rmcp::{
    Json, ServerHandler, ServiceExt,
    handler::server::{router::tool::ToolRouter, wrapper::Parameters},
    schemars, tool, tool_handler, tool_router,
    transport::{
        stdio,
        streamable_http_server::{
            StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
        },
    },
};
use serde::{Deserialize, Serialize};
use shop::Shop;
use tokio::{net::TcpListener, runtime::Builder};
use traffic::Traffic;

mod shop;
mod traffic;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Deserialize, schemars::JsonSchema)]
struct Numbers {
    a: i64,
    b: i64,
}

#[derive(Serialize, schemars::JsonSchema)]
struct Sum {
    result: i64,
}

#[derive(Clone)]
struct Bench {
    tools: Arc<ToolRouter<Self>>,
}

#[tool_router]
impl Bench {
    #[tool(description = "Add two numbers.")]
    async fn add(&self, Parameters(Numbers { a, b }): Parameters<Numbers>) -> Json<Sum> {
        Json(Sum { result: a + b })
    }
}

#[tool_handler(router = self.tools)]
impl ServerHandler for Bench {}

/// The tool `add`, and as many more of its shape as BENCH_TOOLS asks for.
fn build() -> Bench {
    let count: usize = env::var("BENCH_TOOLS").map_or(1, |text| text.parse().expect("a number"));
    let mut tools = Bench::tool_router();
    let first = tools.list_all().remove(0);
    for number in 1..count {
        let mut route = tools.map[&first.name].clone();
        route.attr.name = format!("add_{number}").into();
        route.attr.description = Some(format!("Add two numbers and {number}.").into());
        tools.add_route(route);
    }
    Bench { tools: Arc::new(tools) }
}

async fn serve_http<S: ServerHandler + Clone>(bench: S, sessions: bool, port: u16) -> Result<(), Box<dyn Error>> {
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(sessions)
        .with_json_response(true)
        .with_sse_keep_alive(None);
    let mut manager = LocalSessionManager::default();
    manager.session_config.sse_retry = None;
    let service = StreamableHttpService::new(move || Ok(bench.clone()), Arc::new(manager), config);
    let service: &'static _ = Box::leak(Box::new(service));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let reply = service_fn(move |request| async move { Ok::<_, Infallible>(service.handle(request).await) });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), reply));
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let workers: usize = env::var("BENCH_WORKERS").map_or(1, |text| text.parse().expect("a number"));
    let mut threads = if workers > 1 { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    let runtime = threads.worker_threads(workers).enable_all().build()?;
    let given: Vec<String> = env::args().collect();
    runtime.block_on(async {
        if given[1] == "stdio" {
            build().serve(stdio()).await?.waiting().await?;
            Ok(())
        } else if env::var("BENCH_REDIS").is_ok() {
            serve_http(Shop::connect().await?, given[1] != "stateless", given[2].parse()?).await
        } else if env::var("BENCH_PAGE").is_ok() {
            serve_http(Traffic::new()?, given[1] != "stateless", given[2].parse()?).await
        } else {
            serve_http(build(), given[1] != "stateless", given[2].parse()?).await
        }
    })
}
