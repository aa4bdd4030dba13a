create trigger __trigger__
after __event__ on __table__
__referencing__
for each __level__
__when__
execute function __function__();
