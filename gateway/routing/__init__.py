"""Where a request goes: what is known of the candidates, and policies that order them."""
