//! The replica, driven message by message.
