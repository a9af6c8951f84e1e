"""The former name of `reward.concept`, kept for its command."""
