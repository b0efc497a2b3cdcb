"""Tools: typed functions with effects, which agents call as durable steps."""
