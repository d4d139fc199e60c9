"""Commands that learn from data: ``pretrain``, ``finetune``, ``probe``, ``stats``."""
