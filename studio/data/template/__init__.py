"""Chat templates: from messages to token ids with the trained spans."""
