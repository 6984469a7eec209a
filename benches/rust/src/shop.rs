//! The three tools of the TM Dev Lab benchmark: each needs Redis and the HTTP API, at once where it can.

use std::{collections::HashMap, env, error::Error, sync::Arc, time::SystemTime};

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use redis::{AsyncCommands, aio::MultiplexedConnection};
use rmcp::{
    ErrorData, ServerHandler,
    handler::server::{router::tool::ToolRouter, wrapper::Parameters},
    schemars, tool, tool_handler, tool_router,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

#[derive(Deserialize, schemars::JsonSchema)]
struct Search {
    category: String,
    min_price: f64,
    max_price: f64,
    limit: usize,
}

#[derive(Deserialize, schemars::JsonSchema)]
struct Cart {
    user_id: String,
}

#[derive(Deserialize, Serialize, schemars::JsonSchema)]
struct Item {
    product_id: u32,
    quantity: u32,
}

#[derive(Deserialize, Serialize, schemars::JsonSchema)]
struct Checkout {
    user_id: String,
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Found {
    total_found: u32,
    products: Vec<Ranked>,
}

#[derive(Deserialize, Serialize)]
struct Ranked {
    id: u32,
    sku: String,
    name: String,
    price: f64,
    rating: f64,
    #[serde(default)]
    popularity_rank: usize,
}

#[derive(Deserialize)]
struct Order {
    order_id: String,
    total: f64,
}

#[derive(Clone)]
pub struct Shop {
    tools: Arc<ToolRouter<Self>>,
    api: Arc<str>,
    http: Client<HttpConnector, Full<Bytes>>,
    redis: MultiplexedConnection,
}

fn failed(error: impl std::fmt::Display) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}

impl Shop {
    /// Connect to BENCH_API and BENCH_REDIS.
    pub async fn connect() -> Result<Self, Box<dyn Error>> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Ok(Self {
            tools: Arc::new(Self::tool_router()),
            api: env::var("BENCH_API")?.into(),
            http: Client::builder(TokioExecutor::new()).build(connector),
            redis: redis::Client::open(env::var("BENCH_REDIS")?)?.get_multiplexed_async_connection().await?,
        })
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, ErrorData> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.api))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(failed)?;
        let reply = self.http.request(request).await.map_err(failed)?;
        let text = reply.into_body().collect().await.map_err(failed)?.to_bytes();
        serde_json::from_slice(&text).map_err(failed)
    }
}

#[tool_router]
impl Shop {
    #[tool(description = "Search products by category and price.")]
    async fn search_products(&self, Parameters(given): Parameters<Search>) -> Result<String, ErrorData> {
        let Search { category, min_price, max_price, limit } = given;
        let query = format!("category={category}&min_price={min_price}&max_price={max_price}&limit={limit}");
        let path = format!("/products/search?{query}");
        let mut redis = self.redis.clone();
        let (found, popular) = tokio::join!(
            self.send::<Found>(Method::GET, &path, Vec::new()),
            redis.zrevrange::<_, Vec<String>>("bench:popular", 0, 9),
        );
        let (mut found, popular) = (found?, popular.map_err(failed)?);
        let ids: Vec<u32> = popular.iter().filter_map(|name| name.strip_prefix("product:")?.parse().ok()).collect();
        for product in &mut found.products {
            product.popularity_rank = ids.iter().position(|id| *id == product.id).map_or(0, |at| at + 1);
        }
        let Found { total_found, products } = found;
        let shown = json!({
            "category": category, "total_found": total_found, "products": products, "top10_popular_ids": ids,
        });
        Ok(shown.to_string())
    }

    #[tool(description = "Show the cart of a user.")]
    async fn get_user_cart(&self, Parameters(Cart { user_id }): Parameters<Cart>) -> Result<String, ErrorData> {
        let mut redis = self.redis.clone();
        let cart: HashMap<String, String> = redis.hgetall(format!("bench:cart:{user_id}")).await.map_err(failed)?;
        let items: Vec<HashMap<String, u32>> = serde_json::from_str(&cart["items"]).map_err(failed)?;
        let path = format!("/products/{}", items[0]["product_id"]);
        let (product, entries) = tokio::join!(
            self.send::<Value>(Method::GET, &path, Vec::new()),
            redis.lrange::<_, Vec<String>>(format!("bench:history:{user_id}"), 0, 4),
        );
        product?;
        let history: Result<Vec<Value>, _> =
            entries.map_err(failed)?.iter().map(|entry| serde_json::from_str(entry)).collect();
        let total: f64 = cart["total"].parse().map_err(failed)?;
        let shown = json!({
            "user_id": user_id, "recent_history": history.map_err(failed)?,
            "cart": {"item_count": items.len(), "items": items, "estimated_total": total},
        });
        Ok(shown.to_string())
    }

    #[tool(description = "Order products.")]
    async fn checkout(&self, Parameters(given): Parameters<Checkout>) -> Result<String, ErrorData> {
        let number: u32 = given.user_id.rsplit('-').next().and_then(|text| text.parse().ok()).unwrap_or(0);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(failed)?.as_secs();
        let entry = json!({"user_id": given.user_id, "items": given.items, "ts": now}).to_string();
        let mut pipe = redis::pipe();
        pipe.incr(format!("bench:ratelimit:user-{:05}", number % 100), 1)
            .rpush(format!("bench:history:{}", given.user_id), entry)
            .ignore()
            .zincr("bench:popular", format!("product:{}", given.items[0].product_id), 1)
            .ignore();
        let mut redis = self.redis.clone();
        let body = serde_json::to_vec(&given).map_err(failed)?;
        let (order, calls) = tokio::join!(
            self.send::<Order>(Method::POST, "/cart/calculate", body),
            pipe.query_async::<(u64,)>(&mut redis),
        );
        let (Order { order_id, total }, (calls,)) = (order?, calls.map_err(failed)?);
        let shown = json!({
            "order_id": order_id, "user_id": given.user_id, "total": total, "items_count": given.items.len(),
            "rate_limit_count": calls, "status": "confirmed",
        });
        Ok(shown.to_string())
    }
}

#[tool_handler(router = self.tools)]
impl ServerHandler for Shop {}
