"""Life of a version after it was made: promotion, settlement of requests, provenance."""
