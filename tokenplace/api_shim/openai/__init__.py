"""OpenAI's dialect: bodies, their translation, and the objects of answers. Start at `routes`."""
