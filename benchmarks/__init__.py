"""How fast Pickaxe is, beside a floor and its peers: `make bench`. See README.md."""
