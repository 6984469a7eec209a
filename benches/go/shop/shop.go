// Package shop has the three tools of the TM Dev Lab benchmark for both Go peers: each needs Redis and the HTTP API.
package shop

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Search has the arguments of search_products.
type Search struct {
	Category string  `json:"category"`
	MinPrice float64 `json:"min_price"`
	MaxPrice float64 `json:"max_price"`
	Limit    int     `json:"limit"`
}

// Cart has the arguments of get_user_cart.
type Cart struct {
	UserID string `json:"user_id"`
}

// Item is one position of an order.
type Item struct {
	ProductID int `json:"product_id"`
	Quantity  int `json:"quantity"`
}

// Checkout has the arguments of checkout.
type Checkout struct {
	UserID string `json:"user_id"`
	Items  []Item `json:"items"`
}

type ranked struct {
	ID             int     `json:"id"`
	SKU            string  `json:"sku"`
	Name           string  `json:"name"`
	Price          float64 `json:"price"`
	Rating         float64 `json:"rating"`
	PopularityRank int     `json:"popularity_rank"`
}

// Shop has the connections, with enough of each for all users.
type Shop struct {
	api   string
	http  *http.Client
	redis *redis.Client
}

// New connects to BENCH_API and BENCH_REDIS.
func New() *Shop {
	options, err := redis.ParseURL(os.Getenv("BENCH_REDIS"))
	if err != nil {
		panic(err)
	}
	transport := &http.Transport{MaxIdleConns: 200, MaxIdleConnsPerHost: 200, DisableCompression: true}
	return &Shop{os.Getenv("BENCH_API"), &http.Client{Transport: transport}, redis.NewClient(options)}
}

func (shop *Shop) send(ctx context.Context, method, path string, body, into any) error {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, shop.api+path, content)
	if err != nil {
		return err
	}
	request.Header.Set("content-type", "application/json")
	reply, err := shop.http.Do(request)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

func text(value any, err error) (string, error) {
	if err != nil {
		return "", err
	}
	found, err := json.Marshal(value)
	return string(found), err
}

// SearchProducts asks the API and Redis at once, and adds the rank of each product.
func (shop *Shop) SearchProducts(ctx context.Context, given Search) (string, error) {
	var found struct {
		TotalFound int      `json:"total_found"`
		Products   []ranked `json:"products"`
	}
	path := fmt.Sprintf("/products/search?category=%s&min_price=%g&max_price=%g&limit=%d",
		given.Category, given.MinPrice, given.MaxPrice, given.Limit)
	done := make(chan error, 1)
	go func() { done <- shop.send(ctx, "GET", path, nil, &found) }()
	popular, err := shop.redis.ZRevRange(ctx, "bench:popular", 0, 9).Result()
	if failed := <-done; failed != nil {
		err = failed
	}
	ids, ranks := make([]int, 0, 10), map[int]int{}
	for at, name := range popular {
		id, _ := strconv.Atoi(strings.TrimPrefix(name, "product:"))
		ids = append(ids, id)
		ranks[id] = at + 1
	}
	for at := range found.Products {
		found.Products[at].PopularityRank = ranks[found.Products[at].ID]
	}
	return text(map[string]any{
		"category": given.Category, "total_found": found.TotalFound, "products": found.Products,
		"top10_popular_ids": ids,
	}, err)
}

// GetUserCart reads the cart, and then the first product and the history at once.
func (shop *Shop) GetUserCart(ctx context.Context, given Cart) (string, error) {
	cart, err := shop.redis.HGetAll(ctx, "bench:cart:"+given.UserID).Result()
	if err != nil {
		return "", err
	}
	var items []map[string]int
	if err := json.Unmarshal([]byte(cart["items"]), &items); err != nil {
		return "", err
	}
	var product map[string]any
	done := make(chan error, 1)
	go func() {
		done <- shop.send(ctx, "GET", fmt.Sprintf("/products/%d", items[0]["product_id"]), nil, &product)
	}()
	entries, err := shop.redis.LRange(ctx, "bench:history:"+given.UserID, 0, 4).Result()
	if failed := <-done; failed != nil {
		err = failed
	}
	history := make([]any, len(entries))
	for at, entry := range entries {
		if err := json.Unmarshal([]byte(entry), &history[at]); err != nil {
			return "", err
		}
	}
	total, _ := strconv.ParseFloat(cart["total"], 64)
	return text(map[string]any{
		"user_id": given.UserID, "recent_history": history,
		"cart": map[string]any{"items": items, "item_count": len(items), "estimated_total": total},
	}, err)
}

// Order calls the API and makes three changes in Redis, all at once.
func (shop *Shop) Order(ctx context.Context, given Checkout) (string, error) {
	number, _ := strconv.Atoi(given.UserID[strings.LastIndex(given.UserID, "-")+1:])
	entry, _ := text(map[string]any{"user_id": given.UserID, "items": given.Items, "ts": time.Now().Unix()}, nil)
	var order struct {
		OrderID string  `json:"order_id"`
		Total   float64 `json:"total"`
	}
	done := make(chan error, 1)
	go func() { done <- shop.send(ctx, "POST", "/cart/calculate", given, &order) }()
	pipe := shop.redis.Pipeline()
	calls := pipe.Incr(ctx, fmt.Sprintf("bench:ratelimit:user-%05d", number%100))
	pipe.RPush(ctx, "bench:history:"+given.UserID, entry)
	pipe.ZIncrBy(ctx, "bench:popular", 1, fmt.Sprintf("product:%d", given.Items[0].ProductID))
	_, err := pipe.Exec(ctx)
	if failed := <-done; failed != nil {
		err = failed
	}
	return text(map[string]any{
		"order_id": order.OrderID, "user_id": given.UserID, "total": order.Total, "items_count": len(given.Items),
		"rate_limit_count": calls.Val(), "status": "confirmed",
	}, err)
}
