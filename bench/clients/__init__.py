"""GL programs that are measured: a C client whose every frame is timed (client.c), and running programs on a server."""
