"""A choice as the files that other tools read: WebDataset tars, Parquet, clip-retrieval's and DataComp's layouts."""
