"""The expert-parallel MoE layer that trains: routers, experts, and the exchange of rows between them."""
