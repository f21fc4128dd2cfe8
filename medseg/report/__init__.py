"""Results for people and programs: label maps, picture and report of a scan, written as one."""
