"""One step a module: one public function, named like the file, paths and settings in, files out."""
