mod fake;
mod watching;
mod writing;
