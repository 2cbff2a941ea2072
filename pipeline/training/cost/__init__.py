"""What a training costs: minutes as steps, memory, multiply-adds."""
