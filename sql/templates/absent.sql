left join (select * from __rows__ where false) as __side__ on true
