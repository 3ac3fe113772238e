"""HTTP as every room of Levada speaks it: connections with bounds, refusals as problems, API keys."""
