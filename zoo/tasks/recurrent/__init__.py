"""Tasks of recurrent networks and linear attention."""
