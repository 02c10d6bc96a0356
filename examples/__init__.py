"""Programs to read: a finish on the metric, members never formed, a run that goes on."""
