"""`mesh demo`: the journey of a few hundred events through a mesh of real processes, and an honest account of it."""
