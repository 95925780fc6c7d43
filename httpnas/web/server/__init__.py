"""What speaks HTTP/1.1 over a transport. Knows neither the storage nor the doors."""
