"""Material from elsewhere: addresses, web sites, the Hugging Face hub, S3-compatible storage, typed rows."""
