//! The official client of Rust, for benches/record: `record URL`.

use std::{env, error::Error};

use rmcp::{ServiceExt, model::CallToolRequestParams, transport::StreamableHttpClientTransport};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::args().nth(1).expect("a URL");
    let client = ().serve(StreamableHttpClientTransport::from_uri(url)).await?;
    let pinned = include_str!("../Cargo.toml").lines().find(|line| line.starts_with("rmcp ")).expect("a version");
    println!("source: rmcp {} with reqwest", pinned.split('"').nth(1).expect("a version").trim_start_matches('='));
    client.list_all_tools().await?;
    for _ in 0..2 {
        let arguments = json!({"a": 1234567, "b": 1}).as_object().cloned().expect("an object");
        let call = CallToolRequestParams::new("add").with_arguments(arguments);
        println!("{:?}", client.call_tool(call).await?);
    }
    client.cancel().await?;
    Ok(())
}
