// The HTTP API behind the three tools of the shop: `api PORT`. It has 100,000 products in memory, sorted by price in
// their categories, so that a search costs it next to nothing.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"math"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
)

type product struct {
	ID          int      `json:"id"`
	SKU         string   `json:"sku"`
	Name        string   `json:"name"`
	Category    string   `json:"category"`
	Brand       string   `json:"brand"`
	Price       float64  `json:"price"`
	Stock       int      `json:"stock"`
	Rating      float64  `json:"rating"`
	Tags        []string `json:"tags"`
	Weight      float64  `json:"weight"`
	Description string   `json:"description"`
}

type found struct {
	Category   string    `json:"category"`
	TotalFound int       `json:"total_found"`
	Products   []product `json:"products"`
}

type order struct {
	UserID string `json:"user_id"`
	Items  []struct {
		ProductID int `json:"product_id"`
		Quantity  int `json:"quantity"`
	} `json:"items"`
}

const count = 100_000

var (
	products   = make([]product, count)
	byCategory = map[string][]product{}
	categories = strings.Fields("Electronics Books Clothing Sports Home Garden Toys Food Beauty Automotive Music " +
		"Movies Games Office Health Pets Travel Tools Jewelry Baby")
)

func cents(amount float64) float64 { return math.Round(amount*100) / 100 }

func fill() {
	for at := range products {
		category := categories[at%len(categories)]
		brand := fmt.Sprintf("Brand %d", at%50)
		products[at] = product{
			ID: at + 1, SKU: fmt.Sprintf("SKU-%06d", at+1), Name: fmt.Sprintf("%s %s %d", brand, category, at+1),
			Category: category, Brand: brand, Price: 1 + float64(at%99_900)/100, Stock: at % 501,
			Rating: 1 + float64(at%40)/10, Tags: []string{"new", "sale"}, Weight: cents(float64(1+at%100) / 10),
			Description: fmt.Sprintf("%s by %s, number %d.", category, brand, at+1),
		}
		byCategory[category] = append(byCategory[category], products[at])
	}
	for _, each := range byCategory {
		sort.SliceStable(each, func(one, other int) bool { return each[one].Price < each[other].Price })
	}
}

func reply(writer http.ResponseWriter, value any) {
	writer.Header().Set("content-type", "application/json")
	_ = json.NewEncoder(writer).Encode(value)
}

func search(writer http.ResponseWriter, request *http.Request) {
	query := request.URL.Query()
	least, _ := strconv.ParseFloat(query.Get("min_price"), 64)
	most, _ := strconv.ParseFloat(query.Get("max_price"), 64)
	limit, _ := strconv.Atoi(query.Get("limit"))
	all := byCategory[query.Get("category")]
	first := sort.Search(len(all), func(at int) bool { return all[at].Price >= least })
	end := sort.Search(len(all), func(at int) bool { return all[at].Price > most })
	end = max(first, end)
	reply(writer, found{query.Get("category"), end - first, all[first:min(end, first+limit)]})
}

func one(writer http.ResponseWriter, request *http.Request) {
	id, err := strconv.Atoi(request.PathValue("id"))
	if err != nil || id < 1 || id > count {
		http.NotFound(writer, request)
		return
	}
	reply(writer, products[id-1])
}

func calculate(writer http.ResponseWriter, request *http.Request) {
	var given order
	if json.NewDecoder(request.Body).Decode(&given) != nil {
		http.Error(writer, "not an order", http.StatusBadRequest)
		return
	}
	subtotal := 0.0
	for _, item := range given.Items {
		if item.ProductID >= 1 && item.ProductID <= count {
			subtotal += products[item.ProductID-1].Price * float64(item.Quantity)
		}
	}
	total := cents(subtotal * 1.085)
	reply(writer, map[string]any{
		"order_id": "ORD-" + given.UserID, "user_id": given.UserID, "subtotal": cents(subtotal), "total": total,
		"items_count": len(given.Items),
	})
}

func main() {
	fill()
	routes := http.NewServeMux()
	routes.HandleFunc("GET /products/search", search)
	routes.HandleFunc("GET /products/{id}", one)
	routes.HandleFunc("POST /cart/calculate", calculate)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], routes))
}
