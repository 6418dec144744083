"""The HTTP server: OpenAI's and DeepSeek's chat protocol over one engine, and a plain chat page."""
