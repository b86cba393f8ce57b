"""OpenAI's API from the other side: requests of ours to servers that speak it, their answers as events of ours."""
