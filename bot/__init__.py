"""The service: takes messages, delivers them to Telegram, answers in the chats. Runs as deploy, holds the token."""
