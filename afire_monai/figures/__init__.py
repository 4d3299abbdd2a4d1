"""Pictures of the features that an encoder has learned."""
