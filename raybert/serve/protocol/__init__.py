"""Wire contracts, a file for each family of clients: a body becomes an `Ask`, `Answers` become a body."""
