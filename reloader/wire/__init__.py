"""What client and daemon share: messages, the shapes of answers, where the socket is."""
