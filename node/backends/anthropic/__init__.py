"""A backend that speaks Anthropic's Messages API: requests and streamed answers translated both ways."""
