"""The HTTP server: OpenAI's, DeepSeek's and Anthropic's protocols over one engine, and a chat page."""
