"""Keys and values of what was computed: `arena` holds them, `extents` and `radix` say where, `memory` ties the three together."""
