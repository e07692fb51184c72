"""Hard-concrete gates, which `learn-masks` trains."""
