"""The page at `/`. Start at `routes.page_routes`; what runs in the browser starts at page.js."""
