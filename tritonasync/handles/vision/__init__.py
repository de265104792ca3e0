"""Images on their way into a model, and boxes on their way back."""
