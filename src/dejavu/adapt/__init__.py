"""Self-distillation of a model under the masks that it will run on. Needs torch; its modules import it."""
