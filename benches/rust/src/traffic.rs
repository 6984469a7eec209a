//! The tools of benches/servers/ours_traffic.py. The text of `page` is in the file that BENCH_PAGE names.

use std::{env, error::Error, fs, sync::Arc, time::Duration};

use rmcp::{
    Json, ServerHandler,
    handler::server::{router::tool::ToolRouter, wrapper::Parameters},
    schemars, tool, tool_handler, tool_router,
};
use serde::{Deserialize, Serialize};

#[derive(Deserialize, schemars::JsonSchema)]
struct Numbers {
    a: i64,
    b: i64,
}

#[derive(Deserialize, schemars::JsonSchema)]
struct Counted {
    text: String,
}

#[derive(Serialize, schemars::JsonSchema)]
struct Sum {
    result: i64,
}

#[derive(Deserialize, schemars::JsonSchema)]
struct Address {
    #[serde(rename = "street")]
    _street: String,
    city: String,
}

#[derive(Deserialize, schemars::JsonSchema)]
struct Order {
    isbn: String,
    #[schemars(range(min = 1))]
    copies: i64,
    #[serde(rename = "where")]
    place: Address,
}

#[derive(Deserialize, schemars::JsonSchema)]
struct Ordered {
    order: Order,
}

#[derive(Clone)]
pub struct Traffic {
    tools: Arc<ToolRouter<Self>>,
    page: Arc<str>,
}

#[tool_router]
impl Traffic {
    pub fn new() -> Result<Self, Box<dyn Error>> {
        Ok(Self { tools: Arc::new(Self::tool_router()), page: fs::read_to_string(env::var("BENCH_PAGE")?)?.into() })
    }

    #[tool(description = "Add two numbers.")]
    async fn add(&self, Parameters(Numbers { a, b }): Parameters<Numbers>) -> Json<Sum> {
        Json(Sum { result: a + b })
    }

    #[tool(description = "Add two numbers.")]
    fn add_plain(&self, Parameters(Numbers { a, b }): Parameters<Numbers>) -> Json<Sum> {
        Json(Sum { result: a + b })
    }

    #[tool(description = "Add two numbers after 10 ms.")]
    async fn add_later(&self, Parameters(Numbers { a, b }): Parameters<Numbers>) -> Json<Sum> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        Json(Sum { result: a + b })
    }

    #[tool(description = "Return 16 KB of text.")]
    async fn page(&self) -> String {
        self.page.to_string()
    }

    #[tool(description = "Count the characters of a text.")]
    async fn count(&self, Parameters(Counted { text }): Parameters<Counted>) -> Json<Sum> {
        Json(Sum { result: text.chars().count() as i64 })
    }

    #[tool(description = "Order copies of a book.")]
    async fn order(&self, Parameters(Ordered { order }): Parameters<Ordered>) -> String {
        format!("{} copies of {} go to {}.", order.copies, order.isbn, order.place.city)
    }

    #[tool(description = "Return an error.")]
    async fn fail(&self) -> Result<String, String> {
        Err("There is no such book.".into())
    }
}

#[tool_handler(router = self.tools)]
impl ServerHandler for Traffic {}
